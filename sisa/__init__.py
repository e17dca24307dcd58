"""Exact unlearning for fine-tuned models: train shardable, delete by record ID, audit who saw what.

Training brings the store to a plan. Deleting makes a smaller plan and does the same thing again,
then purges and certifies. Auditing only reads.

    sisa/train.py    train a shardable model
    sisa/delete.py   issue a provable deletion by record ID
    sisa/audit.py    which shard saw which example?
"""

__version__ = "0.1.0"
