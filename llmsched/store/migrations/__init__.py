"""One file per step of the schema, in alembic's form, run by `llmsched.store.migrate` whenever a store is opened.

A new step: copy the last file, raise the revision, and change `schema.py` alike; a test compares the two. A step must
be able to run on SQLite (`op.batch_alter_table`) and in one transaction.
"""
