"""Questions asked of the package; nothing imports them."""
