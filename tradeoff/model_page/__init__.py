"""One model to look at: many small pictures of it on one page, and what they are drawn from."""

from legibility.tradeoff.model_page._picture import AttentionPicture as AttentionPicture
from legibility.tradeoff.model_page._picture import CircuitPicture as CircuitPicture
from legibility.tradeoff.model_page._picture import ExamplePicture as ExamplePicture
from legibility.tradeoff.model_page._picture import GraphPicture as GraphPicture
from legibility.tradeoff.model_page._picture import LensPicture as LensPicture
from legibility.tradeoff.model_page._picture import MaskPicture as MaskPicture
from legibility.tradeoff.model_page._picture import ModelPicture as ModelPicture
from legibility.tradeoff.model_page._picture import Reading as Reading
from legibility.tradeoff.model_page._picture import StudentPicture as StudentPicture
from legibility.tradeoff.model_page._picture import UnitsPicture as UnitsPicture
from legibility.tradeoff.model_page._picture import WeightPicture as WeightPicture
from legibility.tradeoff.model_page._picture import load_picture as load_picture
from legibility.tradeoff.model_page._picture import page_path as page_path
from legibility.tradeoff.model_page._picture import picture_path as picture_path
from legibility.tradeoff.model_page._picture import save_picture as save_picture
from legibility.tradeoff.model_page._render import render_model_html as render_model_html
from legibility.tradeoff.model_page._render import write_model_html as write_model_html
from legibility.tradeoff.model_page._terminal import print_model as print_model
