from typing import Any

from efficient_mae.bench.data import DataResult
from efficient_mae.bench.doctor import DoctorResult
from efficient_mae.bench.flops_tables import FlopsResult
from efficient_mae.bench.info import InfoResult
from efficient_mae.bench.step_result import StepResult
from efficient_mae.demo import DemoResult
from efficient_mae.engine.faults.replay import ReplayResult
from efficient_mae.report.command import PretrainResult, ReportResult
from efficient_mae.report.tokenizer import TokenizerResult
from efficient_mae.study.command import StudyList, StudyResult
from efficient_mae.tasks.classify.knn import KnnResult
from efficient_mae.tasks.classify.probe.result import ProbeResult
from efficient_mae.tasks.classify.result import ClassifierResult, SeedsResult
from efficient_mae.tasks.detect.predict import ObjectsResult
from efficient_mae.tasks.detect.result import DetectResult, DetectSeedsResult
from efficient_mae.tasks.embed import EmbedResult
from efficient_mae.tasks.export.command import ExportResult
from efficient_mae.tasks.predict import PredictResult
from efficient_mae.tasks.reconstruct import ReconstructResult
from efficient_mae.tasks.scenes.command import ScenesResult
from efficient_mae.tasks.segment.predict import LabelMapsResult
from efficient_mae.tasks.segment.result import SegmentResult, SegmentSeedsResult

def demo(**settings: Any) -> DemoResult:
    """`emae demo`: learn on bundled images in a few minutes, and see what came of it."""

def pretrain(**settings: Any) -> PretrainResult:
    """`emae pretrain`: pre-train an encoder on images; the same command again resumes."""

def linear_probe(**settings: Any) -> ClassifierResult | SeedsResult:
    """`emae linear-probe`: train a linear head on a frozen encoder, and judge it."""

def finetune(**settings: Any) -> ClassifierResult | SeedsResult:
    """`emae finetune`: train an encoder and a head with labels, and judge them."""

def segment(**settings: Any) -> SegmentResult | SegmentSeedsResult:
    """`emae segment`: train an encoder and UPerNet with label maps, and judge them."""

def detect(**settings: Any) -> DetectResult | DetectSeedsResult:
    """`emae detect`: train an encoder and Mask R-CNN with boxes and masks, and judge them."""

def tokenizer(**settings: Any) -> TokenizerResult:
    """`emae tokenizer`: train the tokenizer whose words BEiT and CAE learn."""

def reconstruct(**settings: Any) -> ReconstructResult:
    """`emae reconstruct`: picture what a model makes of an image."""

def knn(**settings: Any) -> KnnResult:
    """`emae knn`: k-NN accuracy of an encoder, an untrained one, and raw pixels."""

def probe(**settings: Any) -> ProbeResult:
    """`emae probe`: judge encoders by ridge, logistic regression and k-NN, and compare them."""

def replay(**settings: Any) -> ReplayResult:
    """`emae replay`: do a skipped step of a run again, and show what went wrong."""

def export(**settings: Any) -> ExportResult:
    """`emae export`: write a model for timm, transformers, ONNX, torch.export."""

def bench_step(**settings: Any) -> StepResult:
    """`emae bench step`: time training steps of MAE, Efficient MAE and other libraries."""

def bench_data(**settings: Any) -> DataResult:
    """`emae bench data`: time the loader alone, beside the step."""

def bench_flops(**settings: Any) -> FlopsResult:
    """`emae bench flops`: count the paper's GFLOPs (Tables 1, 3 and 4)."""

def study(**settings: Any) -> StudyResult | StudyList:
    """`emae study`: run a table or figure of the paper, beside the paper's figures."""

def report(**settings: Any) -> ReportResult:
    """`emae report`: write the report of a run."""

def doctor(**settings: Any) -> DoctorResult:
    """`emae doctor`: whether training can run here, and what it would wait for."""

def info(**settings: Any) -> InfoResult:
    """`emae info`: parameters, tokens and GMACs of a model, and the environment."""

def embed(**settings: Any) -> EmbedResult:
    """`emae embed`: write the features of images to a file."""

def predict(**settings: Any) -> PredictResult | LabelMapsResult | ObjectsResult:
    """`emae predict`: write the classes of images to a table, of their pixels to label maps, or their objects."""

def scenes(**settings: Any) -> ScenesResult:
    """`emae scenes`: make a small benchmark for segmentation and detection."""
