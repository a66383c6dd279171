"""The benchmark: this project and its peers on the same shapes, in one run.

``run`` drives workers (one process an engine), ``workers`` holds our engines,
``peers`` the others, ``report`` turns figures into a table, JSON and a plot.
"""
