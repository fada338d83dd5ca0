"""T2I-Adapter for inarch: small networks that steer an image model by a picture."""
