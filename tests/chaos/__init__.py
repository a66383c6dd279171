"""A bad day in production: nothing is lost, nothing comes out different.

``make chaos`` runs it whole (``OPTSERVE_CHAOS_GENERATIONS``, 2,000), each time another
day (``OPTSERVE_CHAOS_SEED``, which it prints); the suite's slow part runs a short one.
"""
