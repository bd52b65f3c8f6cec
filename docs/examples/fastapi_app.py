"""A web application with the bus in its lifespan: one route publishes, one asks, and errors are HTTP's.

    uvicorn docs.examples.fastapi_app:app

    curl localhost:8000/orders --json '{"item": "tea", "quantity": 2}'
    curl localhost:8000/prices/tea

Needs amb-core, fastapi and uvicorn. With AMB_BROKER (such as redis, and AMB_REDIS_URL), there may be any number of it,
and whoever packs and knows prices may as well be another program.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from amb_core import MessageBus
from amb_core.errors import (
    AmbError,
    BackpressureError,
    BrokerUnavailable,
    MessageTooLarge,
    NoResponders,
    RemoteError,
    RequestTimeout,
)

PRICES = {"tea": 3.5, "coffee": 4.0}
STATUS: dict[type[AmbError], int] = {
    MessageTooLarge: 413,
    RemoteError: 502,
    BackpressureError: 503,
    BrokerUnavailable: 503,
    NoResponders: 503,
    RequestTimeout: 504,
}
PATIENCE = 5.0  # seconds that a client of ours waits at most
bus = MessageBus(sender="shop", connect_timeout=PATIENCE, publish_timeout=PATIENCE)


class Order(BaseModel):
    item: str
    quantity: int = 1


@bus.subscriber("shop.orders", group="packers")
async def pack(order: Order) -> None:
    await anyio.sleep(0.2)  # the work
    print(f"packed {order.quantity} x {order.item}", flush=True)


@bus.responder("shop.prices", group="clerks")
async def price_of(item: str) -> float:
    return PRICES[item]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Leaving waits for handlers that run, and gives back what they had not begun."""
    async with bus:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202)
async def order(order: Order) -> dict[str, str]:
    return {"id": await bus.publish("shop.orders", order.model_dump(), wait_for_confirmation=True)}


@app.get("/prices/{item}")
async def price(item: str) -> float:
    reply = await bus.request("shop.prices", item, timeout=PATIENCE)
    return float(reply.data)


@app.get("/health")
async def health() -> JSONResponse:
    found = await bus.health()
    return JSONResponse({"status": found.status}, 200 if found.status == "healthy" else 503)


@app.exception_handler(AmbError)
async def explain(_: Request, error: AmbError) -> JSONResponse:
    """What went wrong on the bus, as HTTP says it."""
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, status)
