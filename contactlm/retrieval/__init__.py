"""Known structures of relatives: a database of chains, the search in it, and what a hit says about the query."""
