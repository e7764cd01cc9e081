"""The geometry service, its worker and the crystallographic engine."""
