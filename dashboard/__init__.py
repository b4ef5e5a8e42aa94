"""Pages for people: what an organization used, spent, may spend and owes. It owns no tables."""
