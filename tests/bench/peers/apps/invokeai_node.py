"""InvokeAI: a node, imported by a folder in `nodes/`; its queue runs one session at a time."""

import json

from invokeai.app.invocations.baseinvocation import BaseInvocation, invocation
from invokeai.app.invocations.fields import InputField
from invokeai.app.invocations.primitives import StringOutput
from invokeai.app.services.shared.invocation_context import InvocationContext

from tests.bench.peers import work

pipeline = work.make_pipeline()
work.announce()


@invocation("peer_generate", title="Generate", version="1.0.0", use_cache=False)
class GenerateInvocation(BaseInvocation):
    """Make an image and store it as every peer does."""

    job: str = InputField(description="The job as JSON")

    def invoke(self, context: InvocationContext) -> StringOutput:
        [answer] = work.run_batch(pipeline, [json.loads(self.job)])
        return StringOutput(value=answer["id"])
