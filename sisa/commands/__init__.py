"""The commands of the command line: each a few lines over a public function.

    options     what several commands are told alike
    flows       the work: init, ingest, train, predict, delete, export, status, demo
    evaluation  the measuring: evaluate
    queue       requests, and working them off
    proof       the questions: verify, audit
    trust       receipts, keys, the log, recovery
    people      holds, refusals, letters, tombstones

Each imports what it runs only when it runs: the program starts quickly, and without torch.
"""
