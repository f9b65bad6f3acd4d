"""How much each study trains: a check that it runs, the evidence, and a larger run for a GPU."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.seed_systems import akd, better_students, distpro, oracle_kd

GLYPHS = {"labelled": 2_400, "teacher_images": 12_000, "views": 8}
FEW_GLYPHS = {
    "labelled": 480, "teacher_images": 2_400, "reward_images": 480, "tuning_images": 480, "test_images": 960,
    "views": 4,
}  # fmt: skip
TEACHER = {"steps": 1_500, "batch_size": 64, "learning_rate": 0.1, "fresh_views": True}
MIXER = {"steps": 4_000, "optimiser": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05}
"""After 1,500 steps it knows 61 % of the tuning images, after these 86 %."""
SHORT = {"steps": 300, "batch_size": 32}
LONG = {"steps": 900, "batch_size": 32}

_AKD = akd.Scale(
    tuning_seeds=4, selection_seeds=5, scoring_seeds=3, label_seeds=2, final_seeds=5, data=GLYPHS, teacher=TEACHER,
    mixer=MIXER, short=SHORT, long={**LONG, "steps": 1_800},
)  # fmt: skip
AKD = {
    "quick": replace(
        _AKD, space={"operators": ["conv", "dw_separable"], "kernels": [3]},
        tuning_seeds=1, selection_seeds=2, scoring_seeds=2, label_seeds=1, final_seeds=2, data=FEW_GLYPHS,
        teacher={**TEACHER, "steps": 150}, mixer={**MIXER, "steps": 150},
        short={**SHORT, "steps": 30}, long={**LONG, "steps": 60}, search_seeds=6, trials=6, draws=100,
        underpowered=True,
    ),
    "evidence": _AKD,
    "full": replace(_AKD, selection_seeds=10, scoring_seeds=5, final_seeds=10, long={**LONG, "steps": 3_000}),
}  # fmt: skip

_ORACLE_KD = oracle_kd.Scale(
    final_seeds=5, choosing_seeds=4, members=5, sweep=(1, 2, 3, 5), data=GLYPHS, teacher=TEACHER,
    student={**LONG, "steps": 1_800}, round={"steps": 240, "batch_size": 32, "learning_rate": 0.03},
    first={"steps": 1_800, "batch_size": 32}, trained=4,
    search={"warmup": 8, "rounds": 16, "trained": 16, "judged": 12, "derived": 32},
    searches=5, searched_seeds=3, random_add_ons=10, random_seeds=2, more_searches=3, more_random=5,
    more_limits=(("conv", 1.25), ("conv", 3.0), ("dw_separable", 3.0), ("mbconv3", 1.6)),
)  # fmt: skip
ORACLE_KD = {
    "quick": replace(
        _ORACLE_KD, final_seeds=2, choosing_seeds=1, members=3, sweep=(1, 3), data=FEW_GLYPHS,
        teacher={**TEACHER, "steps": 120}, student={**LONG, "steps": 60}, round={"steps": 20, "batch_size": 32},
        first={"steps": 20, "batch_size": 32}, trained=2,
        search={"warmup": 1, "rounds": 2, "trained": 4, "judged": 4, "derived": 4}, searches=2, searched_seeds=1,
        random_add_ons=2, random_seeds=1, more_searches=1, more_random=2, more_limits=(("dw_separable", 3.0),),
        regimes=("skewed", "noisy labels"), underpowered=True,
    ),
    "evidence": _ORACLE_KD,
    "full": replace(_ORACLE_KD, final_seeds=10, searches=5, random_add_ons=10, student={**LONG, "steps": 3_000}),
}  # fmt: skip

_BETTER_STUDENTS = better_students.Scale(
    budgets=better_students.BUDGETS, parameter_budgets=better_students.PARAMETER_BUDGETS,
    tuning_seeds=3, final_seeds=5, searches=3, random_parts=10, group=4, data=GLYPHS, teacher=TEACHER,
    search={"steps": 1_200, "batch_size": 32, "learning_rate": 0.02}, student=LONG,
)  # fmt: skip
BETTER_STUDENTS = {
    "quick": replace(
        _BETTER_STUDENTS, budgets=(0.3,), parameter_budgets=(), tuning_seeds=1, final_seeds=2, searches=2,
        random_parts=2, data=FEW_GLYPHS, teacher={**TEACHER, "steps": 120},
        search={"steps": 60, "batch_size": 32, "learning_rate": 0.02}, student={**LONG, "steps": 60},
        targets=("cpu_onnxruntime_fp32",), probes=40, underpowered=True,
    ),
    "evidence": _BETTER_STUDENTS,
    "full": replace(_BETTER_STUDENTS, final_seeds=10, searches=5, random_parts=20, student={**LONG, "steps": 3_000}),
}  # fmt: skip

_DISTPRO = distpro.Scale(
    searches=3, final_seeds=5, short_seeds=10, tuning_seeds=5, sum_seeds=3,
    shares=(0.1, 0.25, 0.5, 1.0), steps=900, data=GLYPHS,
    transfer={"shapes": 2, "textures": 3, "orientations": 2, "colours": 2}, teacher=TEACHER,
    search={"steps": 400, "batch_size": 32}, student={"batch_size": 32},
)  # fmt: skip
DISTPRO = {
    "quick": replace(
        _DISTPRO, searches=2, final_seeds=2, short_seeds=2, tuning_seeds=1, sum_seeds=1,
        shares=(0.5, 1.0), steps=40, data=FEW_GLYPHS,
        teacher={**TEACHER, "steps": 120}, search={"steps": 40, "batch_size": 32}, trials=4, underpowered=True,
    ),
    "evidence": _DISTPRO,
    "full": replace(_DISTPRO, searches=5, final_seeds=10, steps=3_000),
}  # fmt: skip
