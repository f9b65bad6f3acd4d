"""A search as an NNI experiment on this machine: parallel trainings, each a process of its own, and NNI's web portal.

NNI starts, shows and limits the trainings; candidates are chosen, results are paired, and everything is written down
in the process that searches. It and NNI's processes talk over a socket of ours (`exchange.py`): the tuner that NNI
runs (`bridge.py`) passes on candidates, each training (`trial.py`) says what its own candidate came to.
"""

from __future__ import annotations

from akd_deploy.search.experiment.driver import NniExperiment

__all__ = ["NniExperiment"]
