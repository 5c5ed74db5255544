"""Figures that the README and the issues quote, each printed with the machine that it was measured on."""
