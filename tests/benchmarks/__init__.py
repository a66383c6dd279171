"""The benchmark: this project and its peers on the same shapes, in one run.

``command`` is ``optserve bench``; ``measure`` drives the engines, one process each,
``workers`` holds ours, ``peers`` the others, ``report`` makes the table, JSON and plot.
"""
