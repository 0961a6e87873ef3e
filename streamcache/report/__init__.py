"""What records say, for people: tables, plots, a page, and a verdict on each published claim."""
