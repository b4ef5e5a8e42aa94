from openai import OpenAI
import base64
import os

API_KEY = os.environ["TESSERA_API_KEY"]
API_URL = os.environ["TESSERA_BASE_URL"] + "/api"
BASE_URL = f"{API_URL}/models"
MODEL_NAME = "llama3.2-ffm-11b-v-32k-chat"

def encode_image(image_path):
    with open(image_path, "rb") as image_file:
        return base64.b64encode(image_file.read()).decode('utf-8')

IMAGE_PATH = os.environ["IMAGE_PATH"]
BASE64_IMAGE = f"data:image/jpeg;base64,{encode_image(IMAGE_PATH)}"

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
                    "url": BASE64_IMAGE
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

print(f"輸出: {response.choices[0].message.content}")
