curl --location "$TESSERA_BASE_URL/api/models/chat/completions" \
--header 'Content-Type: application/json' \
--header "Authorization: Bearer $TESSERA_API_KEY" \
--data '{
    "model": "llama3.2-ffm-11b-v-32k-chat",
    "messages": [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "這張圖裡面有什麼?"
                },
                {
                    "type": "image_url",
                    "image_url": {
                        "url": "'"$IMAGE_URL"'"
                    }
                }
            ]
        }
    ],
    "temperature": 0.1,
    "max_tokens": 3600,
    "top_p": 0.5
}' | json_pp
