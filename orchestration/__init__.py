"""The work: which steps are missing, in what order, and where they run.

    plan ─▶ schedule ─▶ chains of missing steps ─▶ executor (inline or Ray) ─▶ checkpoint facts ─▶ manifest

Nothing here imports torch; ray in ``ray_cluster`` and ``ray_executor`` alone.
"""
