"""Delta tables: their schemas and the only code of the jobs that reads or commits them. Never imports torch."""
