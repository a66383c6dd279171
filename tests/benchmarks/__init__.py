"""The benchmark: this project and its peers on the same shapes, in one run.

``command`` is ``optserve bench``. ``engines`` names what is measured and prepares it,
``measure`` asks the engines in turns, each a ``process`` of its own: ``workers`` are
ours, ``peers`` the others. ``figures`` hold what came out, ``report`` makes tables of
them, ``plot`` a picture, and ``publish`` puts both into the pages.
"""
