"""Pages for the browser, each one file that needs no network: frame, style, tables, and a plotting library inside."""
