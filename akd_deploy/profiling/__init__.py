"""Profiling: measures probes of networks on a device, fresh process by fresh process."""
