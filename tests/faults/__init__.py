"""Faults on real processes, and a checker of every promise.

`run` starts an application, pumps, a consumer and their servers, each in a process of its own and behind a proxy of its own; `nemeses` are
what is done to them; `history` is what everybody writes down meanwhile; `checker` compares it with the promises. ``make faults`` runs all.
"""
