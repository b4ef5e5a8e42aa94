"""What stands on an invoice, in English and 繁體中文. Pure."""

from dataclasses import dataclass
from typing import Literal

from billing.invoicing.snapshots import Document
from billing.rating import Kind

Language = Literal["en", "zh-hant"]


@dataclass(frozen=True, slots=True)
class Words:
    """The fixed words of a page, in one language."""

    draft: str
    titles: dict[Document, str]
    billed_to: str
    tax_id: str
    number: str
    issued: str
    due: str
    period: str
    until: str
    corrects: str
    replaces: str
    price_list: str
    reason: str
    model: str
    usage: str
    quantity: str
    price: str
    amount: str
    kinds: dict[Kind, str]
    images: str
    tier: str
    and_more: str
    late: str
    allowance: str
    team_subtotal: str
    subtotal: str
    discount: str
    markup: str
    tax: str
    tax_exempt: str
    total: str
    credited: str
    granted: str
    purchased: str
    expires: str
    amount_due: str
    prices_note: str
    tiers_note: str
    nothing: str
    page: str
    hash: str


EN = Words(
    draft="Draft",
    titles={Document.INVOICE: "Invoice", Document.CREDIT_NOTE: "Credit note"},
    billed_to="Billed to",
    tax_id="Tax ID",
    number="Number",
    issued="Issued",
    due="Due",
    period="Period",
    until="to",
    corrects="Corrects",
    replaces="Replaces",
    price_list="Prices of",
    reason="Reason",
    model="Model",
    usage="Usage",
    quantity="Quantity",
    price="Price",
    amount="Amount",
    kinds={
        Kind.TEXT_IN: "Text tokens in",
        Kind.IMAGE_IN: "Image tokens in",
        Kind.CACHED_IN: "Cached tokens in",
        Kind.OUT: "Tokens out",
        Kind.REQUEST: "Requests",
    },
    images="{} images",
    tier="units {} to {}",
    and_more="units from {}",
    late="of these, {} are of an earlier period",
    allowance="Free allowance: {}",
    team_subtotal="Subtotal {}",
    subtotal="Subtotal",
    discount="Discount {} %",
    markup="Markup {} %",
    tax="Tax {} %",
    tax_exempt="Tax exempt",
    total="Total",
    credited="Total credited",
    granted="Granted credit",
    purchased="Prepaid credit",
    expires="expires {}",
    amount_due="Amount due",
    prices_note="Amounts in {}. Prices per million tokens, or per request.",
    tiers_note="Tiers count the usage of all teams together; each has its share of every tier.",
    nothing="Nothing was used.",
    page="Page {} of {}",
    hash="Content SHA-256",
)

ZH_HANT = Words(
    draft="草稿",
    titles={Document.INVOICE: "帳單", Document.CREDIT_NOTE: "折讓單"},
    billed_to="客戶",
    tax_id="統一編號",
    number="編號",
    issued="開立日期",
    due="繳款期限",
    period="計費期間",
    until="至",
    corrects="原帳單",
    replaces="取代帳單",
    price_list="適用價目",
    reason="事由",
    model="模型",
    usage="用量項目",
    quantity="數量",
    price="單價",
    amount="金額",
    kinds={
        Kind.TEXT_IN: "文字輸入 token",
        Kind.IMAGE_IN: "圖片輸入 token",
        Kind.CACHED_IN: "快取輸入 token",
        Kind.OUT: "輸出 token",
        Kind.REQUEST: "請求次數",
    },
    images="{} 張圖片",
    tier="第 {} 至 {}",
    and_more="第 {} 起",
    late="其中 {} 為前期用量",
    allowance="免費額度：{}",
    team_subtotal="小計 {}",
    subtotal="小計",
    discount="折扣 {} %",
    markup="加成 {} %",
    tax="稅額 {} %",
    tax_exempt="免稅",
    total="總計",
    credited="折讓總額",
    granted="贈送點數",
    purchased="預付點數",
    expires="{} 到期",
    amount_due="應繳金額",
    prices_note="金額以 {} 計；單價為每百萬 token，或每次請求。",
    tiers_note="級距依全部團隊的合計用量計算，各團隊按比例分攤。",
    nothing="本期無用量。",
    page="第 {} 頁，共 {} 頁",
    hash="內容 SHA-256",
)

WORDS: dict[Language, Words] = {"en": EN, "zh-hant": ZH_HANT}
