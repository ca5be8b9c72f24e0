"""Projectors and predictors."""

from torch import Tensor, nn


class MLPHead(nn.Module):
    """Linear, batch norm, ReLU, linear, both linears without bias: projector and predictor of BYOL and FRA.

    Applied to every position alone, i.e. a 1x1 convolution, run as one matrix product over all positions. Both
    linears start as the released FRA's: normal with variance 2 / (channels of their output).
    """

    def __init__(self, in_features: int, *, hidden: int = 4096, out_features: int = 256) -> None:
        """`in_features` is C, `hidden` the width between the two linears, `out_features` D."""
        super().__init__()
        first = nn.Linear(in_features, hidden, bias=False)
        last = nn.Linear(hidden, out_features, bias=False)
        for linear in (first, last):
            nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
        self.layers = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, D); a set (B, C, N) -> (B, D, N); a map (B, C, h, w) -> (B, D, h, w).

        Batch-norm statistics run over every dimension but C. A map in channels-last memory is not copied.
        """
        last = x.movedim(1, -1)  # (B, ..., C)
        rows = self.layers(last.reshape(-1, x.shape[1]))  # (B * ..., C) -> (B * ..., D)
        return rows.view(*last.shape[:-1], -1).movedim(-1, 1)
