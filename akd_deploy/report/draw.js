// Draws the figures from the JSON beside them, in the colours of the page: light, dark or on paper.
"use strict";
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = Array.from(document.querySelectorAll("[data-spec]"));
  const paper = { ink: "#1c2430", line: "#8a94a3", grid: "#e3e7ec" };

  function pageColours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    return { ink: colour("--ink"), line: colour("--line-strong"), grid: colour("--line") };
  }

  function themed(colours) {
    const change = { "font.color": colours.ink };
    for (const axis of ["xaxis", "yaxis"]) {
      change[axis + ".gridcolor"] = colours.grid;
      change[axis + ".linecolor"] = colours.line;
      change[axis + ".tickcolor"] = colours.line;
    }
    return change;
  }

  function recolour(colours) {
    plots.forEach((plot) => Plotly.relayout(plot, themed(colours)));
  }

  plots.forEach((plot) => {
    const spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
    Plotly.newPlot(plot, spec.data, spec.layout, { displayModeBar: false, responsive: true, showTips: false });
  });
  recolour(pageColours());
  dark.addEventListener("change", () => recolour(pageColours()));
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((more) => { more.open = true; });
    recolour(paper);
  });
  window.addEventListener("afterprint", () => recolour(pageColours()));
})();
