"""What asking costs: tokens of texts and pictures by vendor, and prices in US dollars."""
