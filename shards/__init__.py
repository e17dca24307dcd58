"""The facts: which record lives where, what saw it, and what is stored.

    records ─▶ layout ─▶ vault (personal data)          ledger (facts, no personal data)
                  │                                        ▲
                  └────▶ plan ─▶ steps ─▶ checkpoints ─────┘──▶ manifest (what is served)

Nothing in this package imports torch or ray, so an auditor needs neither.
"""
