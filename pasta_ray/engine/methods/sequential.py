"""One branch, one token after the other: what every other method is compared with."""

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Event
from pasta_ray.engine.methods.base import Run, Track
from pasta_ray.lang import Document, Text
from pasta_ray.lang.grammar import PlainGrammar


class SequentialRun(Run):
    """Plain decoding; a model that knows tags may not write them."""

    def open_main(self) -> Branch:
        return self.engine.open(self.request.prompt_ids, sampling=self.request.sampling, constraint=PlainGrammar())

    def take(self, track: Track, token: int) -> list[Event]:
        if token in self.engine.tokenizer.stop_ids:
            self.engine.close(track.branch)
            return self.end(track, "stop")
        return self.visible(track, token)

    def document(self) -> Document:
        return Document((Text("".join(self.main.text)),))

    def critical_path(self) -> int:
        return self.num_steps
