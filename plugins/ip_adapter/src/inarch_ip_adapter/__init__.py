"""IP-Adapter for inarch: image models that are prompted by pictures."""
