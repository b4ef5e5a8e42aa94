from openai import OpenAI
import os

API_KEY = os.environ["TESSERA_API_KEY"]
API_URL = os.environ["TESSERA_BASE_URL"] + "/api"
BASE_URL = f"{API_URL}/models"
MODEL_NAME = "llama3.2-ffm-11b-v-32k-chat"
SAMPLE_IMAGE_URL = os.environ["IMAGE_URL"]

client = OpenAI(
    api_key=API_KEY,
    base_url=BASE_URL
)

messages = [
    {
        "role": "user",
        "content": [
            {
                "type": "image_url",
                "image_url": {
                    "url": SAMPLE_IMAGE_URL
                }
            },
            {
                "type": "text",
                "text": "這張圖裡面有什麼?"
            }
        ]
    }
]

response = client.chat.completions.create(
    model=MODEL_NAME,
    temperature = 0.1,
    max_tokens = 3600,
    top_p = 0.5,
    messages = messages
)

print(f"第一輪輸出:{response.choices[0].message.content}")
messages.append({
    "role": "assistant",
    "content": response.choices[0].message.content
})
messages.append({
    "role": "user",
    "content": [
        {
            "type": "text",
            "text": "請用古詩詞來描述這個場景"
        }
    ]
})
response = client.chat.completions.create(
    model=MODEL_NAME,
    temperature = 1,
    max_tokens = 3600,
    top_p = 0.9,
    messages = messages
)
print(f"第二輪輸出:{response.choices[0].message.content}")
