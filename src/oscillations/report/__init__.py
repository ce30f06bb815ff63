"""What people read: measurements, tables, figures, claims and the site. Nothing here imports torch."""
