"""Prefix tuning and prompt tuning for inarch: virtual tokens, PEFT folders read and written."""
