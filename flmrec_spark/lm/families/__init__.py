"""Every family of pretrained models behind one interface: `base.Family`."""
