"""What crossed, regression, dual and pretrain leave behind, typed: their results.json.

`icljax.results` is the same for comparisons, with the records that are shared. Each is read by
`msgspec.convert(found, Regression)`, and so on, which raises a `msgspec.ValidationError` that names
the field that has another form.
"""

from icljax.records.crossed import CROSSED_AXES as CROSSED_AXES
from icljax.records.crossed import Claim as Claim
from icljax.records.crossed import Crossed as Crossed
from icljax.records.crossed import CrossedJob as CrossedJob
from icljax.records.crossed import LayerContrast as LayerContrast
from icljax.records.crossed import MatchedRate as MatchedRate
from icljax.records.crossed import OtherMethod as OtherMethod
from icljax.records.crossed import RateCurve as RateCurve
from icljax.records.crossed import RateSelection as RateSelection
from icljax.records.crossed import open_crossed as open_crossed
from icljax.records.crossed import read_comparison as read_comparison
from icljax.records.crossed import read_crossed as read_crossed
from icljax.records.dual import Differences as Differences
from icljax.records.dual import Dual as Dual
from icljax.records.dual import DualRow as DualRow
from icljax.records.dual import Equality as Equality
from icljax.records.dual import FormRow as FormRow
from icljax.records.dual import Optimizer as Optimizer
from icljax.records.pretrain import Compared as Compared
from icljax.records.pretrain import ComparedTable as ComparedTable
from icljax.records.pretrain import Corpus as Corpus
from icljax.records.pretrain import OverSeeds as OverSeeds
from icljax.records.pretrain import Pretrain as Pretrain
from icljax.records.pretrain import TrainingCurves as TrainingCurves
from icljax.records.regression import Against as Against
from icljax.records.regression import Construction as Construction
from icljax.records.regression import Regression as Regression
from icljax.records.regression import RegressionModel as RegressionModel
