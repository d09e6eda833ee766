"""Delta tables: their schemas and the only code that reads or commits them. Never imports torch."""
