"""Reports: one self-contained HTML file, figures inside, nothing loaded from elsewhere."""

from amortgap.report.sweep import write_sweep

__all__ = ["write_sweep"]
