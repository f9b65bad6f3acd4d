"""Importers: measurements that other tools took become rows of our latency tables."""

FORMATS = {
    "trtexec": "akd_deploy.profiling.importers.trtexec",
    "onnxruntime": "akd_deploy.profiling.importers.onnxruntime_profile",
    "nn-meter": "akd_deploy.profiling.importers.nn_meter",
    "once-for-all": "akd_deploy.profiling.importers.once_for_all",
}
"""Format as the command line names it → the module that reads it."""
