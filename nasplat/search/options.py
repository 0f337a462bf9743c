"""What the options of strategies may be; `make_strategy` holds what an experiment file says against it."""

from typing import Annotated

from pydantic import Field

AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast2 = Annotated[int, Field(ge=2)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
