"""Many pickers, one warm index: decisions, scrapes and events go through a log that all pickers of a pool read.

The log is a stream of NATS JetStream. Every picker appends what it decides and learns in small batches (:mod:`outbox`) and
applies what the others append to its router and pool (:mod:`inbox`). A picker that starts reads the last minutes first. The
log is an aid: without it each picker goes on with what it knows. docs/shared-state.md describes what is shared.
"""
