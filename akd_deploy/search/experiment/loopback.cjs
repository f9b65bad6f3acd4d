// Loaded into NNI's server before anything else. NNI listens on every interface, without a login; here a server that
// names no address gets the loopback one. And the server ends when the process that started it is gone.
"use strict";
const net = require("net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...given) {
  const first = given[0];
  if (typeof first === "object" && first !== null && "port" in first) {
    given[0] = { ...first, host: "127.0.0.1" };
  } else if (typeof first === "number" || (typeof first === "string" && /^\d+$/.test(first))) {
    const rest = given.slice(1).filter((value) => typeof value !== "string" && value !== undefined);
    given = [first, "127.0.0.1", ...rest];
  } else if (first === undefined || typeof first === "function") {
    given = [0, "127.0.0.1", ...given.filter((value) => value !== undefined)];
  }
  return listen.apply(this, given);
};

const parent = process.ppid;
setInterval(() => {
  if (process.ppid !== parent) process.exit(1);
}, 500).unref();

delete process.env.NODE_OPTIONS; // trainings are not NNI's server
