"""Benchmarks as they are published, oddities included, to what is asked when and how it is scored."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from streamkv.config import load_config
from streamkv.errors import MissingVideoError, SuiteError
from streamkv.evaluation.benchmarks import BENCHMARKS
from streamkv.evaluation.benchmarks.__main__ import main
from streamkv.evaluation.benchmarks.judge import judged_scores, read_verdict, write_for_judge
from streamkv.evaluation.benchmarks.options import four_lines, without_labels
from streamkv.evaluation.benchmarks.ovobench import ovobench_scores
from streamkv.evaluation.benchmarks.proactive import (
    ProactiveScore,
    proactive_questions,
    proactive_scores,
)
from streamkv.evaluation.benchmarks.records import to_seconds
from streamkv.evaluation.benchmarks.streamingbench import streamingbench_scores
from streamkv.evaluation.benchmarks.submission import write_submission
from streamkv.evaluation.report import write_answers
from streamkv.evaluation.runner import AnswerRow, EncodedVideo, Variant, run_video, unanswered
from streamkv.evaluation.scoring import SCORERS
from streamkv.evaluation.types import EvalQuestion, Suite
from streamkv.models import VideoLLM

SAMPLES = Path(__file__).with_name("samples")
FILES = {
    "streamingbench": "streamingbench",
    "ovobench": "ovobench/ovo_bench_new.json",
    "rvs-ego": "rvs/ego4d_oe.json",
    "rvs-movie": "rvs/ego4d_oe.json",
    "mlvu": "mlvu/dev_debug_mc.json",
    "egoschema": "egoschema/full.json",
    "qaego4d": "qaego4d/test_mc.json",
    "rekv": "streamkv/streamingbench.json",
}


def loaded(name: str, file: str = "", videos: Path = Path("videos")) -> Suite:
    return BENCHMARKS[name].load(SAMPLES / (file or FILES[name]), videos)


def questions(suite: Suite) -> list[EvalQuestion]:
    return [q for video in suite.videos() for q in video.questions]


def asked_of(suite: Suite, video: str) -> tuple[EvalQuestion, ...]:
    return next(v.questions for v in suite.videos() if v.id == video)


def answered(
    question: EvalQuestion, reply: str, *, suite: str = "s", variant: str = "a", video: str = "v"
) -> AnswerRow:
    row = unanswered(suite, variant, 0, video, question, "")
    return AnswerRow(**{**row.__dict__, "answer": reply, "score": SCORERS[question.scoring](reply, question)})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_and_is_the_same_again(name: str) -> None:
    suite = loaded(name)
    assert suite.name == name
    assert "\n" not in BENCHMARKS[name].about
    assert list(suite.videos()) == list(suite.videos()) == list(pickle.loads(pickle.dumps(suite)).videos())
    ids = [q.id for q in questions(suite)]
    assert len(set(ids)) == len(ids) > 0
    assert {q.scoring for q in questions(suite)} <= set(SCORERS)


def test_a_suite_travels_without_its_questions() -> None:
    assert len(pickle.dumps(loaded("streamingbench"))) < 1_000


def test_streamingbench_clips_of_one_video_are_asked_in_the_order_of_time() -> None:
    suite = loaded("streamingbench", "streamingbench/questions_real.json")
    assert [(v.id, v.path) for v in suite.videos()] == [
        ("sample_1_real", Path("videos/videos/sample_1_real.mp4")),
        ("sample_2_real", Path("videos/videos/sample_2_real.mp4")),
    ]
    first, second = asked_of(suite, "sample_1_real")
    assert (first.id, first.kind, first.asked_at_s, first.answer) == (
        "questions_real/2.1", "Counting", 8.0, "D",
    )  # fmt: skip
    assert (second.asked_at_s, second.answer, second.scoring) == (125.0, "B", "letter")
    assert "Question: What color is the kite right now?\n\nOptions:\nA. Red.\nB. Blue." in second.question
    assert asked_of(suite, "sample_2_real")[0].asked_at_s == 24.0
    assert suite.max_new_tokens == 16


def test_streamingbench_folder_reads_each_question_once() -> None:
    suite = loaded("streamingbench")
    found = {q.id.partition("/")[0] for q in questions(suite)}
    assert found == {"questions_real", "questions_omni_stream", "questions_sqa", "questions_proactive"}
    assert suite.max_new_tokens == 64


def test_streamingbench_options_are_mended_where_a_line_was_torn() -> None:
    torn, swapped, more = questions(loaded("streamingbench", "streamingbench/questions_omni_stream.json"))
    assert "A. He says, 'we head inland to the village'.\nB. He sings.\nC. He waits.\nD. He" in torn.question
    assert "A. Sad.\nC. Glad.\nB. Angry.\nD. Calm." in swapped.question
    assert swapped.answer == "C"
    assert "D. None." in more.question
    assert "Translated" not in more.question


def test_sequential_questions_come_with_the_dialogue_and_letters() -> None:
    first, second = asked_of(loaded("streamingbench"), "sample_4_sqa")
    assert "A. Wang.\nB. Fan Z.D.\nC. Xu xin.\nD. Ma Lin." in first.question
    assert "occurred" not in first.question
    told = "At timestamp 00:00:36, the following question and answer occurred: Question: Who serves now?; "
    assert f"{told}Options: A. Wang., B. Fan Z.D.," in second.question
    assert "Answer: A; \n\nHere is the question." in second.question
    assert (
        "Respond with only the letter (A, B, C, or D) of the correct option.\n\n\n\nHere is" in first.question
    )
    assert all("analyze the video and the provided context to answer" in q.question for q in (first, second))
    assert "A.2.\nB. 6." in second.question


def polls_of(suite: Suite) -> tuple[EvalQuestion, ...]:
    return next(v.questions for v in suite.videos() if "#" in v.id)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("streamingbench", 25, 33), ("rekv", 21, 35)],  # to 4 s after the truth; StreamKV's window
)
def test_a_proactive_question_is_polled_each_second_on_its_own(name: str, first: int, last: int) -> None:
    found = polls_of(loaded(name))
    polls = [q for q in found if q.extra["role"] == "poll"]
    assert [q.asked_at_s for q in polls] == [*range(first, last + 1)]
    assert [q.asked_at_s for q in found if q.extra["role"] == "output"] == [27, 28, 29, 30, 31]
    assert [q.asked_at_s for q in polls if q.answer == "yes"] == [27, 28, 29, 30, 31]
    assert {q.answer for q in polls} == {"yes", "no"}
    assert {q.scoring for q in found} == {"unscored"}
    assert 'Is it the right time to output "3"? You can only answer yes or no.' in found[0].question


def test_a_truth_before_the_window_is_polled_and_counts_as_wrong() -> None:
    """As 19 records of StreamKV's conversion have it."""
    *_, late = (v.questions for v in loaded("rekv").videos())
    assert [(q.asked_at_s, q.answer, q.extra["role"]) for q in late] == [
        (349.0, "no", "poll"), (350.0, "no", "poll"), (351.0, "no", "poll"),
    ]  # fmt: skip
    assert proactive_scores([answered(q, "yes, 40") for q in late])["a"] == ProactiveScore(1, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("yes_from", "said", "expected"),
    [
        (29, "3 points", ProactiveScore(1, 1.0, 1.0, 1.0)),
        (27, "4 points", ProactiveScore(1, 1.0, 1.0, 0.0)),
        (31, "3", ProactiveScore(1, 1.0, 1.0, 1.0)),
        (26, "3", ProactiveScore(1, 1.0, 0.0, 0.0)),
        (32, "3", ProactiveScore(1, 1.0, 0.0, 0.0)),
        (99, "3", ProactiveScore(1, 0.0, 0.0, 0.0)),
    ],
)
def test_the_first_yes_decides_and_an_answer_counts_only_in_time(
    yes_from: int, said: str, expected: ProactiveScore
) -> None:
    rows = [
        answered(q, said if q.extra["role"] == "output" else "Yes." if q.asked_at_s >= yes_from else "No.")
        for q in polls_of(loaded("streamingbench"))
    ]
    other = EvalQuestion("o", "k", "?", "A", "letter")
    assert proactive_scores([*rows, answered(other, "yes")]) == {"a": expected}


def test_the_output_counted_is_the_one_said_at_the_first_yes() -> None:
    def reply(q: EvalQuestion) -> str:
        if q.extra["role"] == "output":
            return "3" if q.asked_at_s != 28 else "4"
        return "yes" if q.asked_at_s >= 28 else "no"

    asked = proactive_questions("x", "Proactive Output", "?", "3", range(25, 34), 29)
    assert proactive_scores([answered(q, reply(q)) for q in asked])["a"].answer_accuracy == 0.0


def test_streamingbench_score_is_of_all_questions_in_the_groups_of_the_papers_table() -> None:
    replies = {
        "Counting": "D",
        "Sequential Question Answering": "A",
        "Proactive Output": "yes, 3",
        "Emotion Recognition": "C",
    }
    rows = [
        answered(q, replies.get(q.kind, "E"), suite="streamingbench") for q in questions(loaded("streamingbench"))
    ]  # fmt: skip
    score = streamingbench_scores([*rows, answered(questions(loaded("mlvu"))[0], "C")])["a"]
    assert score.kinds["Proactive Output"] == 0.0  # yes at the first poll: too early
    assert (score.real, score.omni, score.contextual) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert score.overall == pytest.approx(3 / 9)
    in_time = [
        answered(q, "no" if q.asked_at_s < 28 else "yes 3", suite="streamingbench")
        for q in polls_of(loaded("streamingbench"))
    ]
    polled = streamingbench_scores(in_time)["a"]
    assert (polled.real, polled.contextual, polled.overall) == (None, 1.0, 1.0)


def test_ovobench_is_asked_at_its_moments_and_scored_by_gt() -> None:
    suite = loaded("ovobench")
    ocr, epm = asked_of(suite, "Ego4D/clips/a")
    assert (epm.id, epm.answer, epm.asked_at_s) == ("0", "C", 215.0)  # its `answer` is the text of B
    assert "A. a person with a brown shirt; B. a person with a blue shirt; C. a" in epm.question
    assert (ocr.answer, ocr.asked_at_s, ocr.scoring) == ("A", 12.5, "contains_letter")
    early, late = asked_of(suite, "MovieNet/b")
    assert (early.id, early.answer, early.moments_s) == ("1468/0", "No", ())
    assert (late.answer, late.moments_s, late.scoring) == ("Yes", ((308.0, 309.0),), "yes_no")
    comb, pull = asked_of(suite, "COIN/c")
    assert (comb.answer, pull.answer) == ("No", "Yes")
    assert "pull up the hair" in pull.question
    one, two = asked_of(suite, "perception_test/d")
    assert (one.answer, one.moments_s, one.scoring) == ("1", ((6.0, 17.0),), "digits")
    assert (two.answer, two.moments_s) == ("2", ((6.0, 17.0), (20.0, 30.0)))
    assert "How many times did they breaking something?" in two.question
    assert suite.max_new_tokens == 16


def test_ovobench_score_is_the_mean_of_groups_of_means_of_tasks() -> None:
    def rows(task: str, *scores: float) -> list[AnswerRow]:
        q = EvalQuestion("q", task, "?", "A", "contains_letter")
        return [answered(q, "A" if s else "B", suite="ovobench") for s in scores]

    some = rows("EPM", 1, 1, 1, 0) + rows("ASI", 0) + rows("OCR", 1, 0) + rows("REC", 1)
    score = ovobench_scores([*some, answered(EvalQuestion("x", "EPM", "?", "A", "letter"), "B")])["a"]
    assert score.tasks == {"EPM": 0.75, "ASI": 0.0, "OCR": 0.5, "REC": 1.0}
    assert (score.backward, score.realtime, score.forward) == (0.375, 0.5, 1.0)
    assert score.total == pytest.approx((0.375 + 0.5 + 1.0) / 3)
    assert ovobench_scores(rows("EPM", 1))["a"].total is None


def test_rvs_is_replayed_in_the_order_of_its_ends_from_the_video() -> None:
    suite = loaded("rvs-ego")
    (video,) = suite.videos()
    assert video.path == Path("videos/data/rvs/ego/e1.mp4")
    assert [(q.asked_at_s, q.moments_s) for q in video.questions] == [
        (40.0, ((10.0, 40.0),)),
        (180.0, ((120.5, 180.0),)),
    ]
    assert [(q.question, q.answer, q.scoring, q.kind) for q in video.questions[:1]] == [
        ("What do I hold?", "A knife.", "judge", "open")
    ]
    assert suite.max_new_tokens == 256


def test_mlvu_answers_are_texts_and_its_video_ids_not_unique() -> None:
    suite = loaded("mlvu")
    hat, jump = questions(suite)
    assert hat.question == (
        "Question: What color is the hat?\nOptions:\n(A) Red\n(B) Blue\n(C) Yellow\n(D) White\n"
        "Only give the best option."
    )
    assert (hat.answer, hat.scoring, hat.kind, hat.asked_at_s) == ("C", "letter", "findNeedle", float("inf"))
    assert (jump.answer, jump.kind) == ("B", "count")
    assert "(B) 2\n" in jump.question
    assert len({v.id for v in suite.videos()}) == 2


def test_egoschema_without_an_answer_is_asked_and_not_scored() -> None:
    blind, open_eyed = questions(loaded("egoschema"))
    assert (blind.scoring, blind.answer) == ("unscored", "")
    assert (open_eyed.scoring, open_eyed.answer) == ("letter", "E")


def test_the_rest_of_the_common_form() -> None:
    (cup,) = questions(loaded("qaego4d"))
    assert (cup.answer, cup.moments_s) == ("B", ((12.5, 20.0), (40.0, 41.5)))
    trousers, left = questions(loaded("rekv", "activitynet/test.json"))
    assert (trousers.kind, trousers.answer, trousers.scoring) == ("3", "no", "judge")
    assert left.question == "What is on the left?"
    (kite,) = asked_of(loaded("rekv"), "data/streamingbench/sample_1")
    assert (kite.answer, kite.asked_at_s, kite.moments_s) == ("B", 125.0, ())


def test_a_video_is_found_however_much_of_its_path_the_folder_repeats(tmp_path: Path) -> None:
    (tmp_path / "sample_1_real.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "sample_2_real.mp4").touch()
    suite = loaded("streamingbench", "streamingbench/questions_real.json", tmp_path)
    assert [suite.prepare(v) for v in suite.videos()] == [
        tmp_path / "sample_1_real.mp4",
        tmp_path / "videos/sample_2_real.mp4",
    ]
    (tmp_path / "needle_1.mp4").touch()  # of two annotated videos: which one cannot be known
    for video in loaded("mlvu", videos=tmp_path).videos():
        with pytest.raises(MissingVideoError, match="needle_1"):
            suite.prepare(video)


def test_a_missing_video_is_named() -> None:
    suite = loaded("ovobench")
    with pytest.raises(MissingVideoError, match=r"'Ego4D/clips/a': videos/Ego4D/clips/a\.mp4 is not there"):
        suite.prepare(next(iter(suite.videos())))


def broken(tmp_path: Path, sample: str, path: Sequence[str | int], value: object) -> Path:
    """The sample with one value changed; an ellipsis takes it out."""
    data = json.loads((SAMPLES / sample).read_text())
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    file = tmp_path / Path(sample).name
    file.write_text(json.dumps(data))
    return file


REAL, OVO, MLVU, RVS = (
    "streamingbench/questions_real.json", FILES["ovobench"], FILES["mlvu"], FILES["rvs-ego"],
)  # fmt: skip
PROACTIVE = "streamingbench/questions_proactive.json"


@pytest.mark.parametrize(
    ("name", "sample", "path", "value", "message"),
    [
        ("streamingbench", REAL, [1, "questions", 0, "answer"], "E",
         r"questions_real\.json: record 2, question 1, field 'answer': got 'E', allowed: a letter from A to D; "),
        ("streamingbench", REAL, [0, "questions", 0, "time_stamp"], "soon",
         r'record 1, question 1, field \'time_stamp\': got \'soon\', allowed: seconds from 0, or "HH:MM:SS"'),
        ("streamingbench", REAL, [2, "video_path"], ..., r"record 3, field 'video_path': got nothing, allowed: a text"),
        ("streamingbench", REAL, [2, "questions"], [], r"record 3, field 'questions': got \[\], allowed: a list"),
        ("streamingbench", REAL, [2, "questions", 0, "options"], ["", " "], r"'options': got \['', ' '\], allowed"),
        ("streamingbench", REAL, [2, "questions", 0], 5, r"record 3, question 1: got 5, allowed: an object"),
        ("streamingbench", PROACTIVE, [0, "questions", 0, "ground_truth_time_stamp"], "00:00:23",
         r"'ground_truth_time_stamp': got '00:00:23', allowed: not before time_stamp, 24 s"),
        ("ovobench", OVO, [0, "gt"], 3, r"record 1, field 'gt': got 3, allowed: a whole number from 0 to 2"),
        ("ovobench", OVO, [0, "gt"], True, r"record 1, field 'gt': got True"),
        ("ovobench", OVO, [0, "task"], "XYZ", r"record 1, field 'task': got 'XYZ', allowed: one of EPM, ASI"),
        ("ovobench", OVO, [2, "test_info", 1, "type"], 2, r"record 3, test_info 2, field .type.: got 2, allowed: "),
        ("ovobench", OVO, [4, "end_times"], [1], r"record 5, field 'end_times': got \[1\], allowed: as many"),
        ("ovobench", OVO, [1, "realtime"], -1, r"record 2, field 'realtime': got -1"),
        ("mlvu", MLVU, [0, "conversations", 0, "answer"], "Pink", r"field 'answer': got 'Pink', allowed: the text"),
        ("mlvu", MLVU, [0, "conversations", 0, "answer"], None, r"conversation 1, field 'answer': got None"),
        ("rvs-ego", RVS, [0, "conversations", 1, "end_time"], ..., r"conversation 2, field 'end_time': got nothing"),
        ("rvs-ego", RVS, [0, "conversations", 1, "end_time"], 5, r"'end_time': got 5, allowed: not before start_time"),
        ("rekv", FILES["rekv"], [1, "conversations", 0, "end_time"], 20, r"'end_time': got 20, allowed: after start"),
        ("qaego4d", FILES["qaego4d"], [0, "conversations", 0, "temporal_windows"], [3, 4],
         r"'temporal_windows': got \[3, 4\]"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_named(
    tmp_path: Path, name: str, sample: str, path: list[str | int], value: object, message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        BENCHMARKS[name].load(broken(tmp_path, sample, path, value), tmp_path)


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"none\.json cannot be read"):
        BENCHMARKS["mlvu"].load(tmp_path / "none.json", tmp_path)
    with pytest.raises(SuiteError, match="holds none of"):
        BENCHMARKS["streamingbench"].load(tmp_path, tmp_path)
    for text, message in (("{", "not JSON"), ("{}", "a list of records"), ("[]", "a list of records")):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(SuiteError, match=message):
            BENCHMARKS["mlvu"].load(tmp_path / "odd.json", tmp_path)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("01:02:03", 3723.0), ("0:00:08", 8.0), ("00:00:8", 8.0), ("00:24", 24.0), ("00:00:01.5", 1.5), (12.5, 12.5),
        ("12", None), ("1:2:3:4", None), (-1, None), (True, None), (None, None), (float("nan"), None),
    ],
)  # fmt: skip
def test_clocks(value: object, seconds: float | None) -> None:
    assert to_seconds(value) == seconds


def test_options_with_letters_and_without() -> None:
    assert without_labels(["A. red", "B. a bus"]) == ["red", "a bus"]
    assert without_labels(["(A) red", "(B) a bus"]) == ["red", "a bus"]
    assert without_labels(["A. red", "a bus"]) == ["A. red", "a bus"]
    assert four_lines(["A.Lebrun.", "Fan Z.D.", "Xu xin.", "Ma Lin."])[1] == "B. Fan Z.D."


def test_open_answers_are_written_for_a_judge(tmp_path: Path) -> None:
    hold, pan = questions(loaded("rvs-ego"))
    other = EvalQuestion("o", "k", "?", "A", "letter")
    lost = unanswered("rvs-ego", "a", 0, "e1", pan, "no such video")
    rows = [answered(hold, "a “knife”\n", suite="rvs-ego", video="e1"), answered(other, "A"), lost]
    assert write_for_judge(rows, tmp_path / "new" / "judge.jsonl") == 2
    first, second = (json.loads(x) for x in (tmp_path / "new" / "judge.jsonl").read_text().splitlines())
    system, user = (m["content"] for m in first.pop("messages"))
    assert first == {
        "suite": "rvs-ego", "variant": "a", "id": hold.id, "video": "e1", "kind": "open", "question": "What do I hold?",
        "answer": "A knife.", "pred_answer": "a “knife”", "error": "",
    }  # fmt: skip
    assert system.startswith("You are an intelligent chatbot")
    assert "Question: What do I hold?\nCorrect Answer: A knife.\nPredicted Answer: a “knife”\n" in user
    assert user.endswith("should look like this: {'pred': 'yes', 'score': 4.8}.")
    assert (second["pred_answer"], second["error"], second["messages"]) == ("", "no such video", [])


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("{'pred': 'yes', 'score': 4}", (True, 4)), (' {"pred": "No", "score": 1}\n', (False, 1)),
        ("{'pred': 'yes', 'score': 4.8}", (True, 4)), ("{'pred': 'yes', 'score': 6}", None),
        ("{'pred': 'maybe', 'score': 4}", None), ("{'pred': 'yes', 'score': '4'}", None), ("{'pred': 'yes'}", None),
        ("yes, 4", None), ("['yes', 4]", None), ("", None),
    ],
)  # fmt: skip
def test_a_verdict_is_a_dictionary_and_nothing_else(reply: str, verdict: tuple[bool, int] | None) -> None:
    assert read_verdict(reply) == verdict


def test_verdicts_make_a_score_and_what_was_not_answered_is_wrong(tmp_path: Path) -> None:
    hold, pan = questions(loaded("rvs-ego"))
    lost = unanswered("rvs-ego", "a", 0, "e1", pan, "no such video")
    rows = [
        answered(hold, "a\u2028knife", suite="rvs-ego"),
        lost,
        answered(pan, "it", suite="rvs-ego", variant="b"),
    ]
    file = tmp_path / "judge.jsonl"
    write_for_judge(rows, file)
    with pytest.raises(SuiteError, match=r"line 1, field 'reply': got 'nothing', allowed: a dictionary"):
        judged_scores(file)
    lines = [json.loads(x) for x in file.read_text().strip("\n").split("\n")]
    lines[0]["reply"], lines[2]["reply"] = "{'pred': 'yes', 'score': 5}", "{'pred': 'no', 'score': 2}"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    found = judged_scores(file)["rvs-ego"]
    assert (found["a"].questions, found["a"].accuracy, found["a"].mean_score) == (2, 0.5, 2.5)
    assert (found["b"].questions, found["b"].accuracy, found["b"].mean_score) == (1, 0.0, 2.0)
    assert main([str(file)]) == 0
    file.write_text("[]\n")
    assert main([str(file)]) == 1


def test_a_submission_has_only_the_five_answers(tmp_path: Path) -> None:
    asked = questions(loaded("egoschema"))[0]
    rows = [answered(asked, reply, suite="egoschema") for reply in ("(E)", "F", "nothing", "a")]
    assert write_submission(rows, tmp_path / "s.csv") == 4
    assert [x.partition(",")[2] for x in (tmp_path / "s.csv").read_text().split()] == [
        "answer",
        "4",
        "0",
        "0",
        "0",
    ]


def test_the_command_writes_what_the_table_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ego = questions(loaded("egoschema"))
    rows = [
        *(answered(q, "yes 3") for q in polls_of(loaded("streamingbench"))),
        *(answered(q, r, suite="egoschema") for q, r in zip(ego, ["(D)", "no idea"], strict=True)),
        answered(questions(loaded("rvs-ego"))[0], "a pan"),
    ]
    write_answers(rows, tmp_path / "answers.parquet")
    assert main([str(tmp_path / "answers.parquet")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["proactive"]["a"]["triggered"] == 1.0
    assert (tmp_path / "submission-a.csv").read_text().split() == ["q_uid,answer", "0074f737,3", "00b9a0de,0"]
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 1
    assert main([str(tmp_path / "none.parquet")]) == 1
    assert main([]) == 2


def test_a_suite_runs(tiny_model: VideoLLM) -> None:
    geometry = tiny_model.geometry
    torch.manual_seed(5)
    features = torch.randn(20, geometry.frame_tokens, geometry.hidden_dim)
    seen = EncodedVideo(features, tuple((2.0 * k, 2.0 * k + 2) for k in range(20)), gaps=0)
    suite = loaded("streamingbench", PROACTIVE)
    (video,) = suite.videos()
    method = load_config(overrides=["model.path=other", "preset=streamkv-paper"]).method
    rows = run_video(
        tiny_model, Variant("a", method), video, seen, suite=suite.name, seed=0, max_new_tokens=2
    )
    assert len(rows) == 14
    assert {row.score for row in rows} == {None}
    assert proactive_scores(rows)["a"].questions == 1
