"""What TensorBoard's own backend makes of event files."""

from urllib.parse import parse_qs

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.audio import audio_plugin
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

CONTEXT = RequestContext()


class Board:
    """TensorBoard over a folder: ``tags[plugin][run][tag]`` is how many points it serves."""

    def __init__(self, folder):
        runs = EventMultiplexer(size_guidance={"tensors": 0})  # all points
        runs.AddRunsFromDirectory(str(folder)).Reload()
        self.provider = MultiplexerDataProvider(runs, str(folder))
        lists = {"scalars": self.provider.list_scalars, "text": self.provider.list_tensors,
                 "images": self.provider.list_blob_sequences,
                 "audio": self.provider.list_blob_sequences}  # fmt: skip
        self.tags = {
            plugin: {
                run: {
                    tag: len(runs.GetAccumulator(run).Tensors(tag)) for tag in sorted(series)
                }
                for run, series in listed(
                    CONTEXT, experiment_id="", plugin_name=plugin
                ).items()
            }
            for plugin, listed in lists.items()
        }  # fmt: skip

    def sound(self, run, tag):
        """The last file that an <audio> element of this tag gets, as (type, bytes)."""
        plugin = audio_plugin.AudioPlugin(base_plugin.TBContext(data_provider=self.provider))
        last = plugin._audio_response_for_run(CONTEXT, "", run, tag, 0)[-1]
        key = parse_qs(last["query"])["blob_key"][0]
        return last["contentType"], self.provider.read_blob(CONTEXT, blob_key=key)

    def hparams(self):
        """Columns of settings, columns of metrics, rows: ``{trial: (settings, metrics)}``."""
        context = Context(base_plugin.TBContext(data_provider=self.provider))
        request = api_pb2.GetExperimentRequest(include_metrics=True)
        experiment = get_experiment.Handler(CONTEXT, context, "", request).run()
        rows = list_session_groups.Handler(
            CONTEXT, context, "", api_pb2.ListSessionGroupsRequest(
                start_index=0, slice_size=1000,
                allowed_statuses=list(api_pb2.Status.values()),
            ),
        ).run()  # fmt: skip
        return (
            {info.name: info.differs for info in experiment.hparam_infos},
            [info.display_name or info.name.tag for info in experiment.metric_infos],
            {
                group.name: (
                    {k: v.string_value or v.number_value for k, v in group.hparams.items()},
                    {metric.name.tag: metric.value for metric in group.metric_values},
                )
                for group in rows.session_groups
            },
        )
