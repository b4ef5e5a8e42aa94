// OpenAI's own JavaScript client, under both base URLs. Throws at the first thing that is wrong.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import OpenAI from 'openai';

const { TESSERA_BASE_URL, TESSERA_API_KEY, IMAGE_URL, IMAGE_PATH, MODEL } = process.env;
const DATA_URL = `data:image/jpeg;base64,${readFileSync(IMAGE_PATH).toString('base64')}`;
const WORD = 'Taipei'; // stands in the image

function question(...urls) {
  const images = urls.map((url) => ({ type: 'image_url', image_url: { url } }));
  return [{ role: 'user', content: [...images, { type: 'text', text: 'What does it say?' }] }];
}

async function answersAboutImages(client) {
  for (const urls of [[DATA_URL], [IMAGE_URL], [DATA_URL, IMAGE_URL]]) {
    const completion = await client.chat.completions.create({ model: MODEL, messages: question(...urls) });
    const { usage, choices, _request_id } = completion;
    assert.ok(choices[0].message.content.includes(WORD), choices[0].message.content);
    assert.equal(usage.prompt_tokens_details.image_tokens % (1601 * urls.length), 0);
    assert.equal(usage.prompt_tokens + usage.completion_tokens, usage.total_tokens);
    assert.ok(_request_id);
  }
}

async function streams(client) {
  const stream = await client.chat.completions.create({
    model: MODEL,
    messages: question(DATA_URL),
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = '';
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.ok(text.includes(WORD), text);
  assert.ok(usage.completion_tokens > 0);
}

async function streamsWithoutUsage(client) {
  const stream = client.chat.completions.stream({ model: MODEL, messages: question(DATA_URL) });
  for await (const chunk of stream) {
    assert.ok(chunk.choices.length > 0, 'a chunk without choices came unasked');
  }
  assert.ok((await stream.finalContent()).includes(WORD));
}

async function goesOn(client) {
  const messages = question(DATA_URL);
  const first = await client.chat.completions.create({ model: MODEL, messages });
  messages.push(first.choices[0].message, { role: 'user', content: 'And its colours?' });
  const second = await client.chat.completions.create({ model: MODEL, messages });
  assert.ok(second.usage.prompt_tokens > first.usage.prompt_tokens);
}

async function listsModels(client) {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(MODEL), names.join());
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
}

async function raisesItsOwnErrors(client) {
  const messages = [{ role: 'user', content: 'hi' }];
  const create = (body, options) => () => client.chat.completions.create({ model: MODEL, messages, ...body }, options);
  await assert.rejects(create({ model: 'none' }), OpenAI.NotFoundError);
  await assert.rejects(create({ messages: [] }), OpenAI.BadRequestError);
  await assert.rejects(() => client.withOptions({ apiKey: 'none' }).models.list(), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.equal(error.code, 'invalid_api_key');
    assert.ok(error.requestID);
    return true;
  });
}

async function leavesEarly(client) {
  const stream = await client.chat.completions.create({ model: MODEL, messages: question(DATA_URL), stream: true });
  for await (const _ of stream) break; // leaving the loop aborts the request
  assert.ok(stream.controller.signal.aborted);
}

for (const path of ['/v1', '/api/models']) {
  const client = new OpenAI({ baseURL: TESSERA_BASE_URL + path, apiKey: TESSERA_API_KEY, maxRetries: 0 });
  await listsModels(client);
  await answersAboutImages(client);
  await streams(client);
  await streamsWithoutUsage(client);
  await goesOn(client);
  await raisesItsOwnErrors(client);
  await leavesEarly(client);
}
