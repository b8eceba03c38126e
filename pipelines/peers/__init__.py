"""The contestants of `bench_peers.py`. Each runs in an interpreter of its own, so nothing here but `product` imports
streamfit, and only `supervise` and `verdict` import what the benchmark's own interpreter has.
"""
