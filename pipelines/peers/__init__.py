"""The contestants of `bench_peers.py`, each in an interpreter of its own.

So only `fits` imports their packages, each within its function, and only `supervise` and `verdict` what the benchmark's
own interpreter has.
"""
