"""What the gateways tell about demand: finding and hearing them (``gateways``), adding it up (``totals``, pure)."""
