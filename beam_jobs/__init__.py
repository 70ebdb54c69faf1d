"""The distributed jobs, on Apache Beam."""
