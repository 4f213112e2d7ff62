"""The benchmark: every claim about speed as a ratio between two sides of one run.

A machine is never as quick twice. So nothing here is judged by seconds: what is claimed is measured beside what limits it, or beside a
peer, in turns, over and over, and the ratio of each turn is what counts. `catalogue` says what is compared, `harness` how, `report` tells.
"""
