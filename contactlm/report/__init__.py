"""``contactlm report``: runs compared as figures, tables and plain statements."""
